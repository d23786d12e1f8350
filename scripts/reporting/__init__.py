"""Result lines in, tables, figures and pages out; no model is loaded."""

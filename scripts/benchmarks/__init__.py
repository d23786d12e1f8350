"""The measurements of `python -m scripts.bench`; they import no command."""

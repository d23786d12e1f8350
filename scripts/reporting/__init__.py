"""What the tables, figures and pages of the commands are made of; it imports no command."""

"""What people see: the command line, the terminal app and the report."""

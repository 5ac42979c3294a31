"""What people read: the terminal, the page, its tables and figures."""

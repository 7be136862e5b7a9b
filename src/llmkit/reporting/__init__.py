"""What people see: messages, progress, tables, pictures and summaries."""

"""What the report, its pictures and the tables are made of."""

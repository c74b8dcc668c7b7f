"""What a person sees: tables, numbers rounded down, pages."""

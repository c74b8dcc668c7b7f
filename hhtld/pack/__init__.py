"""An open pack: its table, its sections, and rows on request; nothing here encodes."""

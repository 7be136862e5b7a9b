"""Files to rows: decoding, formats, delimiters, and the roles of columns."""

"""Turn documents into token files, by domain, with a held-out part."""

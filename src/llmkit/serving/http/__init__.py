"""The address, the routes and the pages of a server, and what guards them."""

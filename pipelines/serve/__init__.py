"""Stage: a page and an HTTP service that fill holes in photographs and embed them."""

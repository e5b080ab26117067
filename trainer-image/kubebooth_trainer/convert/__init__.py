"""Any model in, any format out: headers read, a plan made, bytes streamed, then proven."""

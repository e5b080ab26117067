"""Any model in, any format out: headers are read, a plan is made, bytes are streamed, then proven."""

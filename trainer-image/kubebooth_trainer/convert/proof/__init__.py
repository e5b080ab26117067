"""What was written is read again and compared, tensor by tensor, before anybody sees it."""

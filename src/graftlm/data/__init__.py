"""What is said and shown: sentences, readers, tokens, pictures, generated scenes."""

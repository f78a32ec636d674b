"""From raw text to tokens: reading, cleaning, documents, the tokenizer, and the pipeline that stores them."""

"""The vision-language model behind an OpenAI chat API: asked little, paid once, believed never."""

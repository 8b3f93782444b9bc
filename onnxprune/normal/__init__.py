"""The form that models are worked on in, and where its weights come from."""

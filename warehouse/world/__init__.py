"""What is true when: facts in two times, templates, properties, and the questions and requests made of them."""

"""How fast is it, beside what people use and beside what the machine could do; free of Ray."""

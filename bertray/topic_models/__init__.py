"""Topics of reviews: vectors, clusters, words, assignment of every row."""

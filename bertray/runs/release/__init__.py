"""Runs that judge a model beside another one and release it."""

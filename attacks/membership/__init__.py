"""Was this example among the training data?"""

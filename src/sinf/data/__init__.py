"""Labelled images and what is said of them: splits, preprocessing, labels, and semantic clusters that are given."""

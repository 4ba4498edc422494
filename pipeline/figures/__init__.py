"""Pictures of runs: what a network was fed, how it learned, what it confuses, and what is inside of it.

One module draws one picture and knows no folder, except for :mod:`pipeline.figures.run_pictures`, which draws all of a
run from its folder.
"""

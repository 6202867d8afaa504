"""Labs: short experiments that settle a claim by measurement, in one setting.

lab             what a lab is, as data
experiments/    the labs, a file each
setting         the config of each cell; equal compute by counting
cells           one training of one arm with one seed, and the name of its file
train_cell      trains and measures; meter, probes, held_out and bfloat16_router are its instruments
runner          runs the cells that are missing, in several processes
results         cells side by side; intervals has the statistics, judging the verdicts
summary         results.json; curves and figures are what its pictures show
run             all of it, for one lab
"""

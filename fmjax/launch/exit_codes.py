"""Exit codes of `fmjax train`, and what whoever started it should do.

Every launcher follows this table: the supervisor of local processes, and what
`fmjax launch` writes for clusters.
"""

UNFINISHED = 75  # a run was interrupted; started again, it goes on (EX_TEMPFAIL)
USER_ERROR = 2  # a wrong argument, config or file
DIVERGED = 3  # bad_steps stopped the run
CANNOT_SAVE = 4  # checkpoints could not be written
BAD_DEVICE = 5  # a device computes wrongly
CANNOT_JOIN = 6  # the processes of a run did not find each other

# Another start would end in the same way. All codes but these, 0 and UNFINISHED are
# failures, after which a run is started again a limited number of times.
FINAL = (USER_ERROR, DIVERGED, BAD_DEVICE)

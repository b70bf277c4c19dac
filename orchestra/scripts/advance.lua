-- Move a task's record from one state to the next, if the move is legal.
-- KEYS: 1 the record. ARGV: 1 to, 2 the states that may be left, 3 agent, 4 attempt, 5 note, 6 ttl in ms, 7 task name.
--#include record
return advance_record(KEYS[1], redis_time(), ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7])

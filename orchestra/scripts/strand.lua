-- Move one message that waits in a list to the dead letters, unless somebody has fetched it meanwhile.
-- KEYS: 1 the list. ARGV: 1 how our keys begin, 2 the message's bytes, 3 the queue's name, 4 the reason, 5 the error.
-- Returns 1, or 0 where it no longer waits.
--#include leases
if redis.call('LREM', KEYS[1], -1, ARGV[2]) == 0 then return 0 end
bury(ARGV[1], ARGV[3] .. '\n' .. KEYS[1] .. '\n' .. ARGV[2], ARGV[4], ARGV[5])
return 1

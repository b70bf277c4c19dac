-- Give a holder's leases back to their queues. One that leaves for good gives back all, and is forgotten.
-- KEYS: 1 messages that were delivered again, 2 the holders by beat, 3 sessions.
-- ARGV: 1 how our keys begin, 2 holder, 3 a new session, which ends fetches that are under way ('': they go on), 4 '1' when it leaves,
--       5 news as in leases.lua .... Returns the numbers given back.
--#include leases
take_in_news(ARGV[1], KEYS[1], ARGV[2], 5)
local leaves = ARGV[4] == '1'
if ARGV[3] ~= '' then redis.call('HSET', KEYS[3], ARGV[2], ARGV[3]) end
local given = give_back(ARGV[1], KEYS[1], ARGV[2], leaves, -1)
if leaves then redis.call('ZADD', KEYS[2], 0, ARGV[2]) end -- whoever beats next cleans up after it
return given

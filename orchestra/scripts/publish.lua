-- Push one task's message, write it down as submitted, and renew its queue's registration: one step, one round trip.
-- KEYS: 1 the list to push to, 2 the task's record, 3 the table of queues, 4 that table's version.
-- ARGV: 1 the message, 2 the capability queue's suffix ('' for a queue that isn't ours), 3 the task's name,
--       4 the queue's name, 5 the attempt (from 1), 6 the record's ttl in ms, 7 a note.
--#include record
local now = redis_time()
redis.call('LPUSH', KEYS[1], ARGV[1])
open_record(KEYS[2], now, ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
if ARGV[2] ~= '' and redis.call('ZADD', KEYS[3], now, ARGV[2]) == 1 then redis.call('INCR', KEYS[4]) end
return 1

-- Move a leased message that its agent can't run to a queue that is served by agents which know its task.
-- Nothing happens when the lease is no longer the holder's, so that a message is never in two queues.
-- KEYS: 1 the list to push to, 2 the table of queues, 3 its version.
-- ARGV: 1 how our keys begin, 2 holder, 3 number of the lease, 4 its queue, 5 the other queue, 6 that one's suffix.
--#include leases
local waiting
local value = move(ARGV[1], ARGV[2], ARGV[3], ARGV[4], function(value)
  local _, _, raw = lines_of(value)
  waiting = redis.call('LPUSH', KEYS[1], raw)
end)
if not value then return 0 end
wake(ARGV[1], ARGV[5])
local now = stamp(clock())
-- The registration tells since when something has waited here, so only the first message of a row renews it.
local added = waiting == 1 and redis.call('ZADD', KEYS[2], now, ARGV[6]) or redis.call('ZADD', KEYS[2], 'NX', now, ARGV[6])
if added == 1 then redis.call('INCR', KEYS[3]) end
return 1

-- Move a delivered message that its agent can't run to a queue that is served by agents which know its task.
-- Nothing happens when the delivery is no longer ours, so that a message is never in two queues.
-- KEYS: 1 kombu's unacknowledged messages, 2 their index, 3 the list to push to, 4 the table of queues, 5 its version.
-- ARGV: 1 delivery tag, 2 the message, 3 the queue's suffix.
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
local waiting = redis.call('LPUSH', KEYS[3], ARGV[2])
local t = redis.call('TIME')
local now = string.format('%d.%06d', t[1], t[2])
-- The registration tells since when something has waited here, so only the first message of a row renews it.
local added = waiting == 1 and redis.call('ZADD', KEYS[4], now, ARGV[3]) or redis.call('ZADD', KEYS[4], 'NX', now, ARGV[3])
if added == 1 then redis.call('INCR', KEYS[5]) end
return 1

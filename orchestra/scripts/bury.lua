-- Move a queue's messages to the dead letters, with a reason, and take the queue off the table.
-- KEYS: 1 the dead letters, 2 the table of queues, 3 its version, then the queue's lists (one a priority).
-- ARGV: 1 the queue's suffix, 2 the queue's name, 3 the reason, 4 messages to move at most. Returns the messages moved.
local t = redis.call('TIME')
local moved, left = {}, tonumber(ARGV[4])
for i = 4, #KEYS do
  while left > 0 do
    local raw = redis.call('RPOP', KEYS[i])
    if not raw then break end
    redis.call('LPUSH', KEYS[1], cjson.encode({queue = ARGV[2], reason = ARGV[3], at = tonumber(t[1]), raw = raw}))
    moved[#moved + 1] = raw
    left = left - 1
  end
end
if left > 0 and redis.call('ZREM', KEYS[2], ARGV[1]) == 1 then redis.call('INCR', KEYS[3]) end
return moved

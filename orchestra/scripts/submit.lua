-- Push messages of one task, each its first attempt, at once and claiming nothing; write each down as submitted, and renew
-- their queue's registration: one step, one round trip. It does what publish.lua does for such a message, with fewer words.
-- A message whose publish was carried out before is passed over. Returns 1, or {'full', how many waited in the queue, how
-- many messages were taken} where the queue had no room for the rest.
-- KEYS: 1 the list to push to, 2 the table of queues, 3 that table's version, 4 and on: all lists of the queue where its
--       depth is bounded.
-- ARGV: 1 the capability queue's suffix ('' for a queue that isn't ours), 2 the task's name, 3 the queue's name, 4 the
--       records' ttl in ms, 5 a note, 6 how our keys begin, 7 '1' where the caller chose the queue, 8 how many may wait in
--       the queue (0: any number), then for each message the task's id, the publish's id, and the message.
--#include record
--#include wake
--#include depth

local name, queue, ttl_ms, base = ARGV[2], ARGV[3], ARGV[4], ARGV[6]
local limit = tonumber(ARGV[8])
local depth = limit > 0 and depth_from(4) or 0
local now = redis_time()
local line = table.concat({'submitted', now, '', '1', ARGV[5]}, '\31')
local pushed, full = 0, nil
for i = 9, #ARGV, 3 do
  local record, publish = base .. 'task:' .. ARGV[i], ARGV[i + 1]
  local known = redis.call('EXISTS', record) == 1
  local published = known and publishes_of(record) or ''
  if string.find(published, publish, 1, true) then
    redis.call('HSET', record, 'published', published) -- since a WAIT behind a call that writes nothing waits for nothing
  elseif limit > 0 and depth + pushed >= limit then
    full = {'full', depth + pushed, (i - 9) / 3}
    break
  else
    redis.call('LPUSH', KEYS[1], ARGV[i + 2])
    pushed = pushed + 1
    if known then
      open_record(record, now, name, queue, 1, ttl_ms, ARGV[5])
      remember_publish(record, published, publish)
    else
      redis.call('HSET', record, 'submitted', now, 'name', name, 'queue', queue, 'state', 'submitted', 'attempt', 1,
        'history', line, 'published', publish)
      redis.call('PEXPIRE', record, ttl_ms)
    end
  end
end
if pushed > 0 then
  wake(base, queue)
  if ARGV[7] == '1' then redis.call('SET', base .. 'mixed:' .. queue, '1', 'EX', 86400) end
  if ARGV[1] ~= '' and redis.call('ZADD', KEYS[2], now, ARGV[1]) == 1 then redis.call('INCR', KEYS[3]) end
end
return full or 1

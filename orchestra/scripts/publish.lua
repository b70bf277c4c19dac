-- Push one task's message, or put it by until it's due; write it down as submitted, and renew its queue's registration:
-- one step, one round trip. Returns 1. What changes nothing: 0 for a publish that was carried out before, 2 for a retry of
-- a task that was cancelled meanwhile, where another task has what this one claims, that one as in claims.lua, and where
-- the queue is full {'full', how many wait in it, 0}.
-- KEYS: 1 the list to push to, 2 the task's record, 3 the table of queues, 4 that table's version, 5 queues with delayed
--       messages, 6 and on: all lists of the queue where its depth is bounded.
-- ARGV: 1 the message, 2 the capability queue's suffix ('' for a queue that isn't ours), 3 the task's name,
--       4 the queue's name, 5 the attempt (from 1), 6 the record's ttl in ms, 7 a note, 8 how our keys begin,
--       9 the publish's id ('': it has none), 10 when the message is due, in s since 1970 ('': at once),
--       11 the task's id where it follows others, which noted it (else ''), 12 '1' where the caller chose the queue, so
--       that its tasks don't all share what the catalogue says of them, 13 what the task claims, as in claims.lua ('':
--       nothing), 14 how many may wait in the queue before this one is refused ('' or 0: any number), then its own
--       followers as in followers.lua ....
--#include record
--#include leases
--#include followers
--#include claims
--#include depth

-- Write what stands, since a WAIT behind a call that writes nothing waits for nothing.
local function confirm(record, published)
  if published ~= '' then redis.call('HSET', record, 'published', published) end
end

local published = publishes_of(KEYS[2])
if ARGV[9] ~= '' and string.find(published, ARGV[9], 1, true) then
  confirm(KEYS[2], published)
  return 0
end
local again = tonumber(ARGV[5]) > 1
if again and redis.call('HGET', KEYS[2], 'state') == 'cancelled' then return 2 end
local claimed = claim_in(ARGV[13])
local other = claimed and standing(ARGV[8], claimed)
if other then
  local record = ARGV[8] .. 'task:' .. other[1]
  confirm(record, publishes_of(record))
  return other
end
local limit = tonumber(ARGV[14]) or 0
if limit > 0 then
  local depth = depth_from(6)
  if depth >= limit then return {'full', depth, 0} end
end
local now, due = redis_time(), tonumber(ARGV[10])
if due and due > tonumber(now) then
  delay(ARGV[8], KEYS[5], ARGV[4], ARGV[4] .. '\n' .. KEYS[1] .. '\n' .. ARGV[1], ARGV[10])
else
  redis.call('LPUSH', KEYS[1], ARGV[1])
  wake(ARGV[8], ARGV[4])
end
local wait_ms = due and math.max(0, due - tonumber(now)) * 1000 or 0 -- which the record has to outlive
local ttl_ms = string.format('%.0f', ARGV[6] + wait_ms)
open_record(KEYS[2], now, ARGV[3], ARGV[4], ARGV[5], ttl_ms, ARGV[7])
if ARGV[11] and ARGV[11] ~= '' then redis.call('DEL', ARGV[8] .. 'awaits:' .. ARGV[11]) end
if ARGV[12] == '1' then redis.call('SET', ARGV[8] .. 'mixed:' .. ARGV[4], '1', 'EX', 86400) end
if wait_ms > 0 then redis.call('HSET', KEYS[2], 'due', ARGV[10]) elseif again then redis.call('HDEL', KEYS[2], 'due') end
note_followers(ARGV[8], ttl_ms, 15)
if claimed then
  claim(KEYS[2], string.sub(KEYS[2], #ARGV[8] + 6), claimed, wait_ms, ttl_ms)
elseif again then
  follow_lock(KEYS[2], redis.call('HGET', KEYS[2], 'unique'), 'retrying', ttl_ms)
end
if ARGV[9] ~= '' then remember_publish(KEYS[2], published, ARGV[9]) end
if ARGV[2] ~= '' and redis.call('ZADD', KEYS[3], now, ARGV[2]) == 1 then redis.call('INCR', KEYS[4]) end
return 1

-- Publish dead letters anew, each in one step with its removal: a letter is there or in its queue, never both.
-- The message is the one that it was; that it was replayed is remembered beside it, so that agents run it whatever they
-- know of its id, and its losses are counted from 0. Its record is open again, and keeps its past.
-- KEYS: 1 the letters by time, 2 messages that were delivered again, 3 the table of queues, 4 that table's version,
--       5 the letters that this call has replayed.
-- ARGV: 1 how our keys begin, 2 a record's ttl in ms, then for each letter its id, its queue's suffix ('' for a queue
--       that isn't ours) and the key of its task's result ('' where that isn't here).
-- Returns how many letters were replayed, by this run or by an earlier one of the same call.
--#include record
--#include leases
local base, now, replayed = ARGV[1], redis_time(), 0

local function open_again(letter)
  local record = base .. 'task:' .. letter.task_id
  local past = redis.call('HGET', record, 'history') or letter.history
  local note = 'replayed, was ' .. letter.reason
  open_record(record, now, letter.task, letter.queue, letter.attempt, ARGV[2], note)
  local history = redis.call('HGET', record, 'history')
  if past ~= '' and not string.find(history, '\30', 1, true) then
    redis.call('HSET', record, 'history', past .. '\30' .. history)
  end
end

local function publish(letter, suffix)
  local digest = redis.sha1hex(letter.queue .. '\n' .. letter.list .. '\n' .. letter.raw)
  forget_deliveries(base, KEYS[2], digest)
  redis.call('HSET', KEYS[2], digest, 0)
  redis.call('EXPIRE', KEYS[2], 7 * FOREVER)
  redis.call('HSET', base .. 'deliveries', digest, letter.deliveries)
  remember_delivery(base, digest, 'replay', '', letter.reason)
  redis.call('LPUSH', letter.list, letter.raw)
  wake(base, letter.queue)
  if suffix ~= '' and redis.call('ZADD', KEYS[3], now, suffix) == 1 then redis.call('INCR', KEYS[4]) end
end

for i = 3, #ARGV, 3 do
  local id, suffix, result = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local key, letter = base .. 'dead:letter:' .. id, {}
  local fields = redis.call('HGETALL', key)
  for at = 1, #fields, 2 do letter[fields[at]] = fields[at + 1] end
  if letter.raw then
    publish(letter, suffix)
    if letter.task_id ~= '' then open_again(letter) end
    if result ~= '' then redis.call('DEL', result) end
    redis.call('DEL', key)
    redis.call('ZREM', KEYS[1], id)
    redis.call('SADD', KEYS[5], id)
    redis.call('EXPIRE', KEYS[5], 300)
  end
  replayed = replayed + redis.call('SISMEMBER', KEYS[5], id)
end
return replayed

-- Cancel a task that hasn't ended, in constant time: its record says so, which is read where a task begins and ends.
-- Whoever waits for its result is told in the same step, where results are kept in this database.
-- KEYS: 1 the record, 2 the result.
-- ARGV: 1 how our keys begin, 2 the note, 3 the record's ttl in ms, 4 the encoded result ('': kept elsewhere), 5 its ttl
--       in s (0: none), 6 how the task's id stands in its message, 7 bytes of leased messages to look through at most.
-- Returns what it was doing, and its agent: {'unknown' | 'before' | 'finished' | 'running' | 'delayed' | 'leased' |
-- 'waiting', agent}. A waiting task is told from a leased one by a look through what agents have of its queue; where
-- that is more than the bound, it counts as waiting.
--#include record
local got = redis.call('HMGET', KEYS[1], 'state', 'agent', 'queue', 'due')
local state, agent, queue, due = got[1], got[2] or '', got[3] or '', tonumber(got[4] or '')
if not state then return {'unknown', ''} end
if state == 'cancelled' then return {'before', agent} end
if MOMENTS[state] == 'finished' then return {'finished', agent} end
local now = redis_time()

local function is_leased()
  local left = tonumber(ARGV[7])
  for _, name in ipairs(redis.call('ZRANGE', ARGV[1] .. 'leased:' .. queue, 0, 255)) do
    local holder, number = string.match(name, '^(.*):(%d+)$')
    local key = ARGV[1] .. 'leases:' .. holder
    left = left - redis.call('HSTRLEN', key, number)
    if left < 0 then return false end
    local value = redis.call('HGET', key, number)
    if value and string.find(value, ARGV[6], 1, true) then return true end
  end
  return false
end

local what = 'waiting'
if state == 'running' then
  what = 'running'
elseif due and due > tonumber(now) then
  what = 'delayed'
elseif is_leased() then
  what = 'leased'
end
advance_record(KEYS[1], now, 'cancelled', ' ' .. state .. ' ', '', 0, ARGV[2], ARGV[3], '')
if ARGV[4] ~= '' then
  if tonumber(ARGV[5]) > 0 then
    redis.call('SET', KEYS[2], ARGV[4], 'EX', ARGV[5])
  else
    redis.call('SET', KEYS[2], ARGV[4])
  end
  redis.call('PUBLISH', KEYS[2], ARGV[4])
end
return {what, agent}

-- What became of a call behind a breaker: failures open it, and as many successes of probes as it has places close it.
-- While it is closed only failures are told; those of a call that began before its last change decide nothing, nor does
-- any call but the probes while it's half open. The task of a probe that failed goes to the back of its queue, where it may
-- be run again: the service was tried on behalf of all, which is to cost none of them an attempt.
-- KEYS: 1 the task's record.
-- ARGV: 1 how our keys begin, 2 the breaker's name, 3 its epoch at the start, 4 the lease (`<holder>:<number>`), 5 'failed',
--       'succeeded', or 'nothing' (which tells nothing of the service), 6 who says so, then the policy: 7 failures, 8 ratio,
--       9 window in s, 10 cooldown in s, 11 probes; 12 '1' where the task may be run again, 13 its attempt, 14 the record's
--       ttl in ms.
-- Returns {what the breaker has changed to ('': nothing), failed calls of the window, all its calls, until ('': no end),
-- '1' where the task has gone back to its queue}.
--#include leases
--#include record
--#include breakers
local base, name, said, by = ARGV[1], ARGV[2], ARGV[5], ARGV[6]
local breaker, now = breaker_of(base, name), clock()

local function open_now(failures, calls)
  breaker.cooldown, breaker.probes = ARGV[10], ARGV[11]
  local ends = stamp(now + tonumber(ARGV[10]))
  open_breaker(base, breaker, now, ends, by, failures, calls)
  return {'open', failures, calls, ends, '0'}
end

local function to_the_back()
  local holder, number = string.match(ARGV[4], '^(.*):(%d+)$')
  local value = ARGV[12] == '1' and redis.call('HGET', base .. 'leases:' .. holder, number)
  if not value then return '0' end
  local queue, list, raw = lines_of(value)
  move(base, holder, number, queue, function() redis.call('LPUSH', list, raw) end)
  wake(base, queue)
  note_wait(KEYS[1], redis_time(), ARGV[13], 'was a probe of breaker ' .. name, ARGV[14])
  return '1'
end

local function of_a_call()
  if said ~= 'failed' or tostring(breaker.epoch) ~= ARGV[3] then return {'', 0, 0, '', '0'} end
  local opens, failures, calls =
    count_failure(base, name, tonumber(ARGV[9]), now, ARGV[4], tonumber(ARGV[7]), tonumber(ARGV[8]))
  if opens then return open_now(failures, calls) end
  return {'', failures, calls, '', '0'}
end

local function of_a_probe()
  if said == 'failed' then
    local reply = open_now(1, 1)
    reply[5] = to_the_back()
    return reply
  end
  if said == 'succeeded' then
    breaker.succeeded = redis.call('HINCRBY', base .. 'breaker:' .. name, 'succeeded', 1)
  end
  if breaker.succeeded >= breaker.probes then
    close_breaker(base, breaker, now, by)
    let_out_due(base, name, now)
    return {'closed', 0, breaker.succeeded, '', '0'}
  end
  let_out_due(base, name, now) -- its place is free, or the next one is
  return {'', 0, 0, '', '0'}
end

if breaker.state == 'closed' then return of_a_call() end
if redis.call('ZREM', base .. 'breaker-probes:' .. name, ARGV[4]) == 0 then return {'', 0, 0, '', '0'} end
return of_a_probe()

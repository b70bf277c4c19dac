-- A task begins: its lease is still its holder's, it isn't done with already, its breaker lets it, and its record says so,
-- in one step. From here on nobody takes the message over while its holder lives. A task that runs at most once is settled
-- now; one whose breaker is open gives up its lease and waits, or is refused.
-- KEYS: 1 the holder's leases, 2 the queue's leases, 3 the record, 4 messages that were delivered again.
-- ARGV: 1 how our keys begin, 2 holder, 3 number of the lease, 4 queue, 5 '1' for at most once, 6 '1' where more follows
--       the end of a task than its record says (a chord, errbacks), 7 to 13 as in advance.lua, 14 '' or, for a first
--       attempt that is counted, the window in ms, a space, and how the keys of first attempts by window begin, and
--       where it has a breaker: 15 its name, 16 its window in s, 17 'wait' or 'fail' while it's open, 18 s for which a
--       probe that runs at most once has its place.
-- Returns {'moved'} when the lease is another's, {'finished'} for a copy of what is done, {'parked'} or {'refused'} with the
-- time until which its breaker is open ('': without end) and the s until then, else {'started', state}, which goes on
-- behind a breaker with 'closed' or 'probe', the breaker's epoch, and what it has changed to ('': nothing).
--#include leases
--#include record
--#include windows
--#include breakers

-- Ask the task's breaker; returns the end of our reply, or all of it when it's no.
local function ask_breaker(value)
  local base, member, name, now = ARGV[1], ARGV[2] .. ':' .. ARGV[3], ARGV[15], clock()
  local state = redis.call('HGET', KEYS[3], 'state')
  if not value or state == 'cancelled' or state == 'expired' then -- it was let in before, or isn't going to run
    local probes = redis.call('ZSCORE', base .. 'breaker-probes:' .. name, member)
    return {probes and 'probe' or 'closed', tostring(breaker_of(base, name).epoch), ''}
  end
  local place_ends = ARGV[5] == '1' and stamp(now + tonumber(ARGV[18])) or '+inf'
  local verdict, breaker, turned = admit(base, name, member, place_ends, tonumber(ARGV[16]), now, ARGV[9])
  if verdict ~= 'open' then return {verdict, tostring(breaker.epoch), turned} end
  local ends, left = '', ''
  if breaker.ends then ends, left = stamp(breaker.ends), stamp(math.max(0, breaker.ends - now)) end
  if ARGV[17] == 'fail' then return {'refused', ends, left} end
  move(base, ARGV[2], ARGV[3], ARGV[4], function(message) park(base, breaker, now, message) end)
  note_wait(KEYS[3], redis_time(), ARGV[10], 'waits for breaker ' .. name, ARGV[12])
  return {'parked', ends, left}
end

local value = redis.call('HGET', KEYS[1], ARGV[3])
local begun = ARGV[1] .. 'begun:' .. ARGV[2] .. ':' .. ARGV[3]
local asked_again = not value and ARGV[5] == '1' and redis.call('EXISTS', begun) == 1 -- our answer was lost
if not value and not asked_again then return {'moved'} end
if not asked_again and redis.call('EXISTS', KEYS[4]) == 1 then
  local digest = redis.sha1hex(value)
  if redis.call('HEXISTS', KEYS[4], digest) == 1 then
    local got = redis.call('HMGET', KEYS[3], 'state', 'attempt')
    local ended = MOMENTS[got[1] or ''] == 'finished' and ARGV[6] == '0'
    local sent_again = tonumber(ARGV[10]) < tonumber(got[2] or '0') -- its retry is on its way, and takes all along
    local verdict = redis.call('GET', ARGV[1] .. 'settled:' .. digest)
    if verdict and verdict ~= '1' then condemn(ARGV[1], KEYS[4], ARGV[2], ARGV[3], ARGV[4], verdict) end
    if ended or sent_again or verdict then return {'finished'} end
  end
end
local guard = {}
if (ARGV[15] or '') ~= '' then
  guard = ask_breaker(value)
  if guard[1] == 'parked' then return guard end
end
if ARGV[5] == '1' then
  settle(ARGV[1], KEYS[4], ARGV[2], ARGV[3], ARGV[4])
  redis.call('SET', begun, '1', 'EX', 60)
else
  redis.call('ZADD', KEYS[2], '+inf', ARGV[2] .. ':' .. ARGV[3])
end
if guard[1] == 'refused' then return guard end
local now = redis_time()
local window_ms, attempts = string.match(ARGV[14], '^(%d+) (.+)$')
if attempts then count_in_window(attempts, window_at(now, window_ms), 2 * window_ms) end
local standing, unique = advance_record(KEYS[3], now, unpack(ARGV, 7, 13))
if unique then redis.call('HSET', KEYS[3], 'holder', ARGV[2], 'lease', ARGV[5] == '1' and '' or ARGV[3]) end
return {'started', standing[2], unpack(guard)}

-- Open, close or forget a breaker, as a person says.
-- ARGV: 1 how our keys begin, 2 the breaker's name, 3 'open', 'close' or 'reset', 4 who says so, then to open it: 5 for how
--       many s ('': until it's closed), 6 cooldown in s and 7 probes of its policy ('': as it had them).
-- What waits for it is let out when it's closed or forgotten. Returns 1, or 0 when it was closed already.
--#include leases
--#include breakers
local base, name, act, by = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local breaker, now = breaker_of(base, name), clock()
if act == 'open' then
  if ARGV[6] ~= '' then breaker.cooldown, breaker.probes = ARGV[6], ARGV[7] end
  open_breaker(base, breaker, now, ARGV[5] == '' and '' or stamp(now + tonumber(ARGV[5])), by, 0, 0)
  redis.call('HSET', base .. 'breaker:' .. name, 'forced', '1')
  return 1
end
local was_closed = breaker.state == 'closed'
if not was_closed then close_breaker(base, breaker, now, by) end
redis.call('DEL', base .. 'breaker-calls:' .. name)
let_out_due(base, name, now)
if act == 'reset' and redis.call('EXISTS', base .. 'parked:' .. name) == 0 then redis.call('ZREM', base .. 'breakers', name) end
return was_closed and 0 or 1

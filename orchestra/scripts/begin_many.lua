-- Many tasks of one agent begin, in one step: each as start.lua has it for one that runs at least once and has no breaker,
-- and whose message was never delivered before. From here on nobody takes their messages over while their holder lives.
-- KEYS: 1 the holder's leases.
-- ARGV: 1 how our keys begin, 2 holder, 3 agent, 4 the states that may be left, 5 the records' ttl in ms, then for each
--       task: number of its lease, queue, id, attempt, name, and '' or what is counted, as in start.lua.
-- Returns for each 'moved', when the lease is another's, or the state in which its record stands.
--#include leases
--#include record
--#include windows
local base, holder, now, verdicts = ARGV[1], ARGV[2], redis_time(), {}
for i = 6, #ARGV, 6 do
  local number, queue, id, attempt, name, counting = unpack(ARGV, i, i + 5)
  local verdict = 'moved'
  if redis.call('HEXISTS', KEYS[1], number) == 1 then
    redis.call('ZADD', base .. 'leased:' .. queue, '+inf', holder .. ':' .. number)
    local window_ms, attempts = string.match(counting, '^(%d+) (.+)$')
    if attempts then count_in_window(attempts, window_at(now, window_ms), 2 * window_ms) end
    local record = base .. 'task:' .. id
    local standing, unique = advance_record(record, now, 'running', ARGV[4], ARGV[3], attempt, '', ARGV[5], name)
    if unique then redis.call('HSET', record, 'holder', holder, 'lease', number) end
    verdict = standing[2]
  end
  verdicts[#verdicts + 1] = verdict
end
return verdicts

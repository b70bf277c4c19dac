-- Many tasks of one agent have succeeded: their results are stored, their records advance, and their leases end, in one step.
-- KEYS: 1 messages that were delivered again.
-- ARGV: 1 how our keys begin, 2 holder, 3 agent, 4 the states that may be left, 5 the records' ttl in ms, 6 the results'
--       ttl in s (0: none), 7 how a stored success begins, then for each task: number of its lease, queue, id, attempt, name,
--       and its result's key and encoded result ('' and '' where none is kept).
--#include leases
--#include record
--#include results
local base, holder, now = ARGV[1], ARGV[2], redis_time()
for i = 8, #ARGV, 7 do
  local number, queue, id, attempt, name, result, encoded = unpack(ARGV, i, i + 6)
  local record = base .. 'task:' .. id
  local news = {'succeeded', ARGV[4], ARGV[3], attempt, '', ARGV[5], name}
  if result == '' then
    advance_record(record, now, unpack(news))
  else
    store_result(result, encoded, ARGV[6], ARGV[7], record, now, unpack(news))
  end
  settle(base, KEYS[1], holder, number, queue)
end
return (#ARGV - 7) / 7

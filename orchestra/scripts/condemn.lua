-- Make a dead letter of a message whose task has failed, and say so in the task's record: one step, since a letter that is
-- replayed opens its record again, which a late word of the failure would close.
-- KEYS: 1 messages that were delivered again, 2 the record.
-- ARGV: 1 how our keys begin, 2 holder, 3 number of the lease, 4 queue, 5 the reason and the error, 6 to 12 as in advance.lua.
-- Saying it twice does no harm: whoever says it again has no lease any more, nor was that taken back from him.
--#include leases
--#include record
local base, holder, number = ARGV[1], ARGV[2], ARGV[3]
local held = redis.call('HEXISTS', base .. 'leases:' .. holder, number) == 1
if held or redis.call('EXISTS', base .. 'moved:' .. holder .. ':' .. number) == 1 then
  advance_record(KEYS[2], redis_time(), unpack(ARGV, 6, 12))
end
condemn(base, KEYS[1], holder, number, ARGV[4], ARGV[5])
return 1

-- Give back leases that their holder has no hand on any more, though Redis has their tasks as running: the server has
-- forgotten their end, as a replica does that lagged when it took its master's place. What hadn't begun is the fetch's
-- matter.
-- KEYS: 1 messages that were delivered again.
-- ARGV: 1 how our keys begin, 2 holder, 3 the first number that isn't looked at, then the numbers that it still has in
--       hand. Returns the numbers given back.
--#include leases
local base, holder, given, in_hand = ARGV[1], ARGV[2], {}, {}
for i = 4, #ARGV do in_hand[ARGV[i]] = true end
for _, number in ipairs(redis.call('HKEYS', base .. 'leases:' .. holder)) do
  if not in_hand[number] and tonumber(number) < tonumber(ARGV[3]) then
    local queue = lines_of(redis.call('HGET', base .. 'leases:' .. holder, number))
    if redis.call('ZSCORE', base .. 'leased:' .. queue, holder .. ':' .. number) == 'inf' then
      move(base, holder, number, queue, function(value)
        count_again(base, KEYS[1], holder, number, value)
        put_back(base, value)
      end)
      given[#given + 1] = number
    end
  end
end
return given

-- Find a task's message in one key, as far as one call may look: what it looks into is bounded in bytes.
-- A list is looked through from its newest message on, and a sorted set from its end: what is added meanwhile moves the
-- others further back, and what is taken away is taken at the other end, so that nothing is passed over.
-- KEYS: 1 the list, the sorted set of delayed messages or of leases, or the hash of a holder's leases.
-- ARGV: 1 how our keys begin, 2 what KEYS[1] is: 'list', 'delayed', 'leases' or 'held'; 'oldest' is a list, from its
--       other end on, 3 from which entry on, 4 bytes to look into, 5 entries to read first, 6 the task's id, then how a
--       message names it as its own ....
-- Returns {'next', entry to go on from, how many to read first then}, {'end'}, or {'found', ...}: for a list how many
-- were pushed before it, and the bytes; for delayed ones the time; for leases the holder, and the time of the fetch.
local MOST_AT_ONCE = 2000
local base, kind, at, most, step = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local key, find, id = KEYS[1], string.find, ARGV[6]

local function is_it(value)
  if not find(value, id, 1, true) then return false end -- it's in few others: in those of its own kin, say
  for i = 7, #ARGV do
    if find(value, ARGV[i], 1, true) then return true end
  end
  return false
end

local function lease_of(name)
  local holder, number = string.match(name, '^(.*):(%d+)$')
  return redis.call('HGET', base .. 'leases:' .. holder, number) or '', holder
end

-- How entries are read, in the order of the look, and what is told of the one that is it; else its size.
local KINDS = {
  list = {
    read = function() return redis.call('LRANGE', key, at, at + step - 1) end,
    look = function(value, place)
      return is_it(value) and {'found', redis.call('LLEN', key) - 1 - place, value}, #value
    end,
  },
  oldest = {
    read = function()
      local some, turned = redis.call('LRANGE', key, -at - step, -at - 1), {}
      for i = #some, 1, -1 do turned[#turned + 1] = some[i] end
      return turned
    end,
    look = function(value, place) return is_it(value) and {'found', place, value}, #value end,
  },
  delayed = {
    read = function() return redis.call('ZREVRANGE', key, at, at + step - 1) end,
    look = function(value) return is_it(value) and {'found', redis.call('ZSCORE', key, value)}, #value end,
  },
  leases = {
    read = function() return redis.call('ZREVRANGE', key, at, at + step - 1) end,
    look = function(name)
      local value, holder = lease_of(name)
      return is_it(value) and {'found', holder, redis.call('ZSCORE', key, name)}, #value
    end,
  },
  held = {
    read = function() return redis.call('HKEYS', key) end, -- as many as an agent fetches at once, in any order
    look = function(number)
      local value = redis.call('HGET', key, number)
      if not is_it(value) then return false, #value end
      local queue, holder = string.match(value, '^([^\n]*)\n'), string.sub(key, #base + #'leases:' + 1)
      return {'found', holder, redis.call('ZSCORE', base .. 'leased:' .. queue, holder .. ':' .. number)}
    end,
  },
}

local read, look = KINDS[kind].read, KINDS[kind].look
local bytes, seen = 0, 0
while bytes < most / 2 do -- for less it isn't worth finding the place within the list once more
  local some = read()
  for i, entry in ipairs(some) do
    local found, size = look(entry, at + i - 1)
    if found then return found end
    bytes, seen = bytes + size + 64, seen + 1
  end
  if #some < step or kind == 'held' then return {'end'} end
  at = at + step
  step = math.max(1, math.floor(math.min(MOST_AT_ONCE, (most - bytes) * seen / bytes)))
end
return {'next', at, math.max(1, math.floor(math.min(MOST_AT_ONCE, most * seen / bytes)))}

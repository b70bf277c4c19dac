-- Part: circuit breakers, which are the whole fleet's. It needs the part `leases`.
-- `breaker:<name>` is a hash: state (open, half_open; absent: closed), epoch (grows with each change), since, until ('': no
-- end), forced, cooldown, probes, succeeded (probes of this half-open period), failures and calls (when it opened).
-- `breaker-calls:<name>` counts the calls of the window by tenths: c<time> all, f<time> the failed ones, of which `last`
-- was the last. `breaker-probes:<name>` has the reserved places: `<holder>:<number>` of a lease, by the time until which
-- the place is taken at most; a place whose lease has ended, in whatever way, is free.
-- `parked:<name>` has the messages that wait for it, written as a lease's are, by the time when they began to; `parked`
-- counts them by queue; `breaker-row:<name>` remembers for a minute since when one had waited that was let out, by its
-- digest. `breakers` has the names by the time of the last call, those that aren't closed at infinity.
-- In `due` a breaker stands behind a line feed, which no queue's name has.
local REMEMBERED = 604800 -- s; how long a closed breaker's epoch is kept
local LISTED = 86400 -- s; how long one that nobody calls any more is listed
local ARRIVES = 1 -- s; how long a message that was let out for a place is waited for
local RELEASED = 500 -- messages that are let out at once when a breaker is closed

local function breaker_of(base, name)
  local got = redis.call('HMGET', base .. 'breaker:' .. name, 'state', 'epoch', 'until', 'probes', 'succeeded', 'cooldown')
  return {
    name = name, state = got[1] or 'closed', epoch = got[2] or '0', ends = tonumber(got[3] or ''),
    probes = tonumber(got[4] or '1'), succeeded = tonumber(got[5] or '0'), cooldown = tonumber(got[6] or '30'),
  }
end

local function set_due(base, name, at)
  redis.call('ZADD', base .. 'due', stamp(at), '\n' .. name)
end

-- Write down a change of state, and tell whoever listens. `by` is an agent's name, or the words for a person.
local function change(base, breaker, to, now, by, failures, calls)
  local key = base .. 'breaker:' .. breaker.name
  breaker.state, breaker.epoch = to, redis.call('HINCRBY', key, 'epoch', 1)
  redis.call('HSET', key, 'state', to, 'since', stamp(now), 'succeeded', '0')
  redis.call('HDEL', key, 'forced', 'unparked', 'unparked_until', 'handed', 'handed_until')
  redis.call('DEL', base .. 'breaker-probes:' .. breaker.name)
  redis.call('ZADD', base .. 'breakers', to == 'closed' and stamp(now) or '+inf', breaker.name)
  local entry = cjson.encode({
    name = breaker.name, state = to, at = stamp(now), by = by, failures = tonumber(failures), calls = tonumber(calls),
  })
  redis.call('LPUSH', base .. 'breakers:changes', entry)
  redis.call('LTRIM', base .. 'breakers:changes', 0, 99)
  redis.pcall('PUBLISH', base .. 'breakers', entry) -- a user may lack the right to it
end

-- Open a breaker, until a time or ('') until somebody closes it.
local function open_breaker(base, breaker, now, ends, by, failures, calls)
  local key = base .. 'breaker:' .. breaker.name
  change(base, breaker, 'open', now, by, failures, calls)
  redis.call('HSET', key, 'until', ends, 'cooldown', breaker.cooldown, 'probes', breaker.probes, 'failures', failures, 'calls', calls)
  redis.call('PERSIST', key)
  redis.call('DEL', base .. 'breaker-calls:' .. breaker.name)
  if ends == '' then redis.call('ZREM', base .. 'due', '\n' .. breaker.name) else set_due(base, breaker.name, tonumber(ends)) end
end

local function close_breaker(base, breaker, now, by)
  local key = base .. 'breaker:' .. breaker.name
  change(base, breaker, 'closed', now, by, 0, 0)
  redis.call('HDEL', key, 'until')
  redis.call('EXPIRE', key, REMEMBERED)
  redis.call('DEL', base .. 'breaker-calls:' .. breaker.name)
  set_due(base, breaker.name, now)
end

-- How many places for probes are free; of a closed breaker nobody asks that.
local function free_places(base, breaker, now)
  if breaker.state == 'open' then return (breaker.ends and breaker.ends <= now) and breaker.probes or 0 end
  local key, taken = base .. 'breaker-probes:' .. breaker.name, 0
  local places = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for i = 1, #places, 2 do
    local holder, number = string.match(places[i], '^(.*):(%d+)$')
    local held = places[i + 1] ~= 'inf' and tonumber(places[i + 1]) > now
    if held or (places[i + 1] == 'inf' and redis.call('HEXISTS', base .. 'leases:' .. holder, number) == 1) then
      taken = taken + 1
    else
      redis.call('ZREM', key, places[i])
    end
  end
  return math.max(0, breaker.probes - breaker.succeeded - taken)
end

-- Messages that were let out for free places ('unparked' to their queue, 'handed' to an agent) and haven't begun yet.
local function on_the_way(base, breaker, now, which)
  local got = redis.call('HMGET', base .. 'breaker:' .. breaker.name, which, which .. '_until')
  return tonumber(got[2] or '0') > now and tonumber(got[1] or '0') or 0
end

local function let_go(base, breaker, now, which, count)
  local under_way = on_the_way(base, breaker, now, which) + count
  redis.call('HSET', base .. 'breaker:' .. breaker.name, which, under_way, which .. '_until', stamp(now + ARRIVES))
end

local function arrived(base, breaker, now)
  for _, which in ipairs({'unparked', 'handed'}) do
    local under_way = on_the_way(base, breaker, now, which)
    if under_way > 0 then redis.call('HSET', base .. 'breaker:' .. breaker.name, which, under_way - 1) end
  end
end

-- Have a message wait for a breaker; one that was let out for a place that another took gets its old place in the row.
local function park(base, breaker, now, value)
  local since = redis.call('HGET', base .. 'breaker-row:' .. breaker.name, redis.sha1hex(value)) or stamp(now)
  if redis.call('ZADD', base .. 'parked:' .. breaker.name, since, value) == 1 then
    redis.call('HINCRBY', base .. 'parked', (lines_of(value)), 1)
  end
  if breaker.ends then redis.call('ZADD', base .. 'due', 'NX', stamp(math.max(now, breaker.ends)), '\n' .. breaker.name) end
end

local function unparked(base, name, value)
  local queue = lines_of(value)
  redis.call('ZREM', base .. 'parked:' .. name, value)
  if redis.call('HINCRBY', base .. 'parked', queue, -1) <= 0 then redis.call('HDEL', base .. 'parked', queue) end
end

-- Put messages that wait back to the front of their queues, so that the oldest is in front.
local function let_out(base, breaker, values)
  for i = #values, 1, -1 do
    put_back(base, values[i])
    unparked(base, breaker.name, values[i])
  end
end

-- Let out what may run now: all that waits for a closed breaker, batch by batch; else as many as there are places. Of the
-- batches the newest comes first, since the next one is put in front of it.
local function let_out_due(base, name, now)
  local breaker, key = breaker_of(base, name), base .. 'parked:' .. name
  if breaker.state == 'closed' then
    let_out(base, breaker, redis.call('ZRANGE', key, -RELEASED, -1))
  else
    local free = free_places(base, breaker, now) - on_the_way(base, breaker, now, 'unparked')
    local values = free > 0 and redis.call('ZRANGE', key, 0, free - 1) or {}
    for _, value in ipairs(values) do
      redis.call('HSET', base .. 'breaker-row:' .. name, redis.sha1hex(value), redis.call('ZSCORE', key, value))
      redis.call('EXPIRE', base .. 'breaker-row:' .. name, 60)
    end
    let_out(base, breaker, values)
    if #values > 0 then let_go(base, breaker, now, 'unparked', #values) end
  end
  if redis.call('EXISTS', key) == 0 then
    redis.call('ZREM', base .. 'due', '\n' .. name)
  elseif breaker.state == 'closed' then
    set_due(base, name, now)
  elseif breaker.state == 'open' and not breaker.ends then
    redis.call('ZREM', base .. 'due', '\n' .. name)
  else
    set_due(base, name, math.max(now + ARRIVES, breaker.state == 'open' and breaker.ends or 0))
  end
end

-- ── the window ──

local function tenth_of(window, now)
  local width = window / 10
  return string.format('%.3f', math.floor(now / width) * width)
end

local function count_call(base, name, window, now)
  local key, tenth = base .. 'breaker-calls:' .. name, tenth_of(window, now)
  if redis.call('HINCRBY', key, 'c' .. tenth, 1) > 1 then return end
  redis.call('PEXPIRE', key, math.ceil(window * 2000))
  redis.call('ZADD', base .. 'breakers', stamp(now), name)
  redis.call('ZREMRANGEBYSCORE', base .. 'breakers', '-inf', stamp(now - LISTED))
  for _, field in ipairs(redis.call('HKEYS', key)) do
    local at = tonumber(string.match(field, '^[cf]([%d.]+)$') or '')
    if at and at < now - 2 * window then redis.call('HDEL', key, field) end
  end
  if redis.call('EXISTS', base .. 'parked:' .. name) == 1 then set_due(base, name, now) end -- if a server forgot that
end

-- Count a failed call, once. Returns whether that opens the breaker, and the failed calls and all calls that say so: those
-- of the shortest last part of the window, by tenths, which has failures enough and too large a part of its calls failed.
-- Else those of the whole window. A service that goes away is so found out before the good calls of the window are gone.
local function count_failure(base, name, window, now, member, failures, ratio)
  local key = base .. 'breaker-calls:' .. name
  if redis.call('HGET', key, 'last') ~= member then
    redis.call('HINCRBY', key, 'f' .. tenth_of(window, now), 1)
    redis.call('HSET', key, 'last', member)
    redis.call('PEXPIRE', key, math.ceil(window * 2000))
  end
  local tenths, counts, found = {}, {c = {}, f = {}}, redis.call('HGETALL', key)
  for i = 1, #found, 2 do
    local kind, at = string.match(found[i], '^([cf])([%d.]+)$')
    if at and tonumber(at) >= now - window then
      if not (counts.c[at] or counts.f[at]) then tenths[#tenths + 1] = at end
      counts[kind][at] = tonumber(found[i + 1])
    end
  end
  table.sort(tenths, function(a, b) return tonumber(a) > tonumber(b) end)
  local failed, calls = 0, 0
  for _, at in ipairs(tenths) do
    failed, calls = failed + (counts.f[at] or 0), calls + (counts.c[at] or 0)
    if failed >= failures and failed >= ratio * calls then return true, failed, math.max(failed, calls) end
  end
  return false, failed, math.max(failed, calls)
end

-- ── the guard ──

-- Ask whether a call may be made. Returns 'closed', 'probe' (it has a reserved place) or 'open', the breaker, and the
-- change that came of it ('': none).
local function admit(base, name, member, place_ends, window, now, by)
  local breaker, key = breaker_of(base, name), base .. 'breaker-probes:' .. name
  if breaker.state == 'closed' then
    count_call(base, name, window, now)
    return 'closed', breaker, ''
  end
  if redis.call('ZSCORE', key, member) then return 'probe', breaker, '' end -- asked again after a lost answer
  if free_places(base, breaker, now) == 0 then return 'open', breaker, '' end
  local turned = ''
  if breaker.state == 'open' then
    turned = 'half_open'
    change(base, breaker, 'half_open', now, by, 0, 0)
    set_due(base, name, now + ARRIVES)
  end
  redis.call('ZADD', key, place_ends, member)
  arrived(base, breaker, now)
  return 'probe', breaker, turned
end

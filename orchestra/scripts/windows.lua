-- Part: windows of time, in each of which something is counted by a key of its own, which ends with the window's number.
local function window_at(moment, window_ms)
  return math.floor(moment * 1000 / window_ms)
end

local function key_of_window(begin, window)
  return begin .. string.format('%.0f', window)
end

-- Count one more in a window; the key lives for `ttl_ms` from the first one on. Returns how many there were before.
local function count_in_window(begin, window, ttl_ms)
  local key = key_of_window(begin, window)
  local count = redis.call('INCR', key)
  if count == 1 then redis.call('PEXPIRE', key, string.format('%.0f', ttl_ms)) end
  return count - 1
end

local function counted_in_window(begin, window)
  return tonumber(redis.call('GET', key_of_window(begin, window)) or '0')
end

-- How many were counted within the last window's time: all of this window, and of the one before what still lies in it.
local function counted_lately(begin, now, window_ms)
  local window = window_at(now, window_ms)
  local past = now * 1000 / window_ms - window
  return counted_in_window(begin, window) + counted_in_window(begin, window - 1) * (1 - past)
end

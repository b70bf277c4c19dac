-- Part: how many messages wait in a queue, which has a list for each priority step: these are KEYS from `first` on.
local function depth_from(first)
  local depth = 0
  for i = first, #KEYS do depth = depth + redis.call('LLEN', KEYS[i]) end
  return depth
end

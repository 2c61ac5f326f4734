-- Replies with the address and port that the client connected to.
--
-- When a socket is bound to one address, nginx sets $server_addr from its configuration, without getsockname(). These
-- sockets are bound to loopback addresses and take connections to every address of the prefixes, so this script calls
-- getsockname() on the connection.
local ffi = require "ffi"
local base = require "resty.core.base"

ffi.cdef[[
int getsockname(int fd, void *address, uint32_t *length);
const char *inet_ntop(int family, const void *source, char *text, uint32_t size);
]]

-- Layout of nginx's structures: the request begins with a signature and a pointer to the connection; the connection's
-- file descriptor follows three pointers.
local SIGNATURE = 0x50545448 -- 'HTTP'
local FAMILIES = { [2] = { start = 4 }, [10] = { start = 8 } } -- AF_INET, AF_INET6: where the address begins

local address = ffi.new("uint8_t[28]")
local length = ffi.new("uint32_t[1]")
local text = ffi.new("char[46]")

local function local_address()
    local request = ffi.cast("uint64_t *", base.get_request())
    if bit.band(tonumber(request[0] % 0x100000000), 0xffffffff) ~= SIGNATURE then
        return nil
    end
    local connection = ffi.cast("int *", ffi.cast("uint8_t *", request[1]) + 24)
    length[0] = 28
    if ffi.C.getsockname(connection[0], address, length) ~= 0 then
        return nil
    end
    local family = FAMILIES[address[0] + address[1] * 256]
    if family == nil then
        return nil
    end
    ffi.C.inet_ntop(address[0], address + family.start, text, 46)
    return ffi.string(text), address[2] * 256 + address[3]
end

local unmoor = {}

function unmoor.answer()
    local host, port = local_address()
    if host == nil then
        ngx.status = 500
        ngx.say("the local address of the connection is not known")
        return
    end
    ngx.header["Unmoor-Address"] = host
    ngx.header["Unmoor-Port"] = port
    ngx.say(ngx.var.unmoor_edge, " answered on ", host, " port ", port)
end

return unmoor

#include "jail/tap.hpp"

#include "jail/plan.hpp"
#include "sys/clone.hpp"
#include "sys/fd.hpp"
#include "sys/syscall.hpp"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/sched.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

namespace casemate::jail {

using sys::call;
using sys::check;
using sys::Fd;
using sys::Result;
using sys::SysError;

namespace {

/// struct virtio_net_hdr_mrg_rxbuf, as virtio 1 has it.
constexpr int header_size = 12;

/// Copies a checked name, which has its NUL.
template <std::size_t Size> void copy_name(char (&to)[Size], const char* from) {
  std::memcpy(to, from, Size);
}

/// A socket of rtnetlink(7), and one request at a time.
class Routes {
public:
  SysError open() {
    long fd = call(__NR_socket, AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    socket_.reset(fd < 0 ? -1 : static_cast<int>(fd));
    return check("socket(NETLINK_ROUTE)", fd);
  }

  /// Of a device of the calling task's network namespace.
  Result<int> index_of(const char* name) {
    struct ifreq request {};
    copy_name(request.ifr_name, name);
    long result = call(__NR_ioctl, socket_.get(), SIOCGIFINDEX, &request);
    return result < 0 ? Result<int>(check("ioctl(SIOCGIFINDEX)", result)) : request.ifr_ifindex;
  }

  template <typename Body> void begin(std::uint16_t type, std::uint16_t flags, const Body& body) {
    size_ = NLMSG_LENGTH(sizeof body);
    header() = {};
    header().nlmsg_type = type;
    header().nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | NLM_F_ACK | flags);
    std::memcpy(buffer_ + NLMSG_HDRLEN, &body, sizeof body);
  }

  void attribute(std::uint16_t type, const void* value, std::size_t size) {
    const rtattr head{static_cast<std::uint16_t>(RTA_LENGTH(size)), type};
    std::memcpy(buffer_ + size_, &head, sizeof head);
    std::memcpy(buffer_ + size_ + RTA_LENGTH(0), value, size);
    size_ += RTA_SPACE(size);
  }

  /// Sends what was put together. The kernel's answer is there when send(2) returns.
  SysError request(const char* name) {
    header().nlmsg_len = static_cast<std::uint32_t>(size_);
    long sent = call(__NR_sendto, socket_.get(), buffer_, size_, 0, nullptr, 0);
    if (sent < 0) {
      return check(name, sent);
    }
    // An error quotes the request.
    long received =
        call(__NR_recvfrom, socket_.get(), buffer_, sizeof buffer_, 0, nullptr, nullptr);
    if (received < 0) {
      return check(name, received);
    }
    nlmsgerr answer{};
    if (received < static_cast<long>(NLMSG_LENGTH(sizeof answer)) ||
        header().nlmsg_type != NLMSG_ERROR) {
      return {name, EPROTO};
    }
    std::memcpy(&answer, buffer_ + NLMSG_HDRLEN, sizeof answer);
    return check(name, answer.error);
  }

private:
  nlmsghdr& header() { return *reinterpret_cast<nlmsghdr*>(buffer_); }

  Fd socket_;
  std::size_t size_ = 0;
  alignas(nlmsghdr) std::byte buffer_[512]; // no request is longer than 150 bytes
};

std::size_t size_of(const casemate_address& address) { return address.family == AF_INET ? 4 : 16; }

SysError add_address(Routes& routes, int index, const casemate_address& address) {
  ifaddrmsg body{};
  body.ifa_family = static_cast<std::uint8_t>(address.family);
  body.ifa_prefixlen = static_cast<std::uint8_t>(address.prefix);
  // Nobody but the guest could have it already, and to ask takes a second in which it is of no use.
  body.ifa_flags = address.family == AF_INET6 ? IFA_F_NODAD : 0;
  body.ifa_index = static_cast<std::uint32_t>(index);
  routes.begin(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body);
  routes.attribute(IFA_LOCAL, address.bytes, size_of(address));
  routes.attribute(IFA_ADDRESS, address.bytes, size_of(address));
  return routes.request("netlink(RTM_NEWADDR)");
}

SysError add_route(Routes& routes, int index, const casemate_route& route) {
  rtmsg body{};
  body.rtm_family = static_cast<std::uint8_t>(route.to.family);
  body.rtm_dst_len = static_cast<std::uint8_t>(route.to.prefix);
  body.rtm_table = RT_TABLE_MAIN;
  body.rtm_protocol = RTPROT_STATIC;
  body.rtm_scope =
      static_cast<std::uint8_t>(route.has_gateway != 0 ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK);
  body.rtm_type = RTN_UNICAST;
  routes.begin(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body);
  routes.attribute(RTA_DST, route.to.bytes, size_of(route.to));
  routes.attribute(RTA_OIF, &index, sizeof index);
  if (route.has_gateway != 0) {
    routes.attribute(RTA_GATEWAY, route.gateway, size_of(route.to));
  }
  return routes.request("netlink(RTM_NEWROUTE)");
}

/// A guest is a neighbour of its namespace, not its router: what it advertises as one is
/// not to become a route there. ENOENT where the kernel has no IPv6.
SysError refuse_advertisements(const Host& host, const char* name, Fd& file) {
  char path[64] = "sys/net/ipv6/conf/";
  std::size_t size = std::strlen(path);
  for (const char* from = name; *from != '\0'; ++from) {
    path[size++] = *from;
  }
  std::memcpy(path + size, "/accept_ra", sizeof "/accept_ra");
  long fd = call(__NR_openat, host.proc.get(), path, O_WRONLY | O_CLOEXEC);
  if (fd == -ENOENT) {
    return {};
  }
  if (fd < 0) {
    return check("open(accept_ra)", fd);
  }
  file.reset(static_cast<int>(fd));
  return check("write(accept_ra)", call(__NR_write, file.get(), "0", 1));
}

/// What is done in the namespace. What that opens stands here, and not with who does it: he shares
/// our descriptors, and one that is killed on the way closes none.
struct Visit {
  const Host& host;
  const casemate_tap& wanted;
  int network;
  Fd tap{};
  Fd setting{};
  Routes routes{};
  SysError error{"clone3", EOWNERDEAD};
};

/// Addresses and routes last: they need a link that is up.
SysError set_up(Visit& visit) {
  const casemate_tap& wanted = visit.wanted;
  Routes& routes = visit.routes;
  if (SysError error = refuse_advertisements(visit.host, wanted.name, visit.setting)) {
    return error;
  }
  if (SysError error = routes.open()) {
    return error;
  }
  Result<int> index = routes.index_of(wanted.name);
  if (!index) {
    return index.error();
  }
  ifinfomsg body{};
  body.ifi_index = index.value();
  body.ifi_flags = IFF_UP;
  body.ifi_change = IFF_UP;
  routes.begin(RTM_NEWLINK, 0, body);
  if (wanted.mtu != 0) {
    routes.attribute(IFLA_MTU, &wanted.mtu, sizeof wanted.mtu);
  }
  if (wanted.bridge[0] != '\0') {
    Result<int> bridge = routes.index_of(wanted.bridge);
    if (!bridge) {
      return {"ioctl(SIOCGIFINDEX of the bridge)", bridge.error().number};
    }
    routes.attribute(IFLA_MASTER, &bridge.value(), sizeof(int));
    // A bridge takes the lowest address of its ports for its own: this one is to be higher.
    std::uint8_t address[6];
    call(__NR_getrandom, address, sizeof address, 0);
    address[0] = 0xfe;
    routes.attribute(IFLA_ADDRESS, address, sizeof address);
  }
  if (SysError error = routes.request("netlink(RTM_NEWLINK)")) {
    return error;
  }
  const auto* addresses = reinterpret_cast<const casemate_address*>(&wanted + 1);
  for (std::uint32_t i = 0; i < wanted.address_count; ++i) {
    if (SysError error = add_address(routes, index.value(), addresses[i])) {
      return error;
    }
  }
  const auto* list = reinterpret_cast<const casemate_route*>(addresses + wanted.address_count);
  for (std::uint32_t i = 0; i < wanted.route_count; ++i) {
    if (SysError error = add_route(routes, index.value(), list[i])) {
      return error;
    }
  }
  return {};
}

/// In the namespace: the tap itself, or one end of an existing one.
SysError open_tap(Visit& visit) {
  const casemate_tap& wanted = visit.wanted;
  // By a descriptor of the host's /dev, as the launcher's own root is an empty one.
  long opened = call(__NR_openat, visit.host.dev.get(), "net/tun",
                     O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
  if (opened < 0) {
    return check("open(/dev/net/tun)", opened);
  }
  visit.tap.reset(static_cast<int>(opened));
  const bool is_new = (wanted.flags & CASEMATE_TAP_EXISTING) == 0;
  struct ifreq request {};
  copy_name(request.ifr_name, wanted.name);
  // Frames only, each behind the header that virtio gives them: offloads go through as they are.
  request.ifr_flags = static_cast<short>(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
  if (is_new) {
    // Else somebody's tap of this name would be taken over, and TUNSETIFF say nothing.
    request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_TUN_EXCL);
  } else {
    // Without one of this name, TUNSETIFF would make it.
    if (SysError error = visit.routes.open()) {
      return error;
    }
    if (Result<int> index = visit.routes.index_of(wanted.name); !index) {
      return index.error();
    }
  }
  if (long result = call(__NR_ioctl, visit.tap.get(), TUNSETIFF, &request); result < 0) {
    return check("ioctl(TUNSETIFF)", result);
  }
  if (long result = call(__NR_ioctl, visit.tap.get(), TUNSETVNETHDRSZ, &header_size); result < 0) {
    return check("ioctl(TUNSETVNETHDRSZ)", result);
  }
  if (is_new) {
    if (SysError error = set_up(visit)) {
      return error;
    }
  }
  if ((wanted.flags & CASEMATE_TAP_PERSISTENT) != 0) {
    // Last, so that one that could not be set up is gone with its descriptor.
    if (long result = call(__NR_ioctl, visit.tap.get(), TUNSETPERSIST, 1); result < 0) {
      return check("ioctl(TUNSETPERSIST)", result);
    }
  }
  return {};
}

void visit(void* argument) {
  auto& visit = *static_cast<Visit*>(argument);
  const SysError error = visit.network < 0
                             ? SysError{}
                             : check("setns(net)", call(__NR_setns, visit.network, CLONE_NEWNET));
  visit.error = error ? error : open_tap(visit);
  call(__NR_exit_group, 0);
}

} // namespace

Result<int> make_tap(const Host& host, const casemate_tap& wanted, int network,
                     std::span<std::byte> stack) {
  Visit there{host, wanted, network};
  sys::CloneArguments arguments;
  arguments.flags = CLONE_VM | CLONE_VFORK | CLONE_FILES;
  arguments.stack = reinterpret_cast<std::uint64_t>(stack.data());
  arguments.stack_size = stack.size();
  long pid = sys::clone3(arguments, visit, &there);
  if (pid < 0) {
    return check("clone3", pid);
  }
  sys::reap(pid);
  return there.error ? Result<int>(there.error) : there.tap.release();
}

} // namespace casemate::jail

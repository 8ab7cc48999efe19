/*
 * Runs a command and lets one of its system calls meet a fault.
 *
 *     fault COUNT NTH ACTION COMMAND ...
 *
 * Counted are the calls that make, fill, move and sync files, and that map a
 * file for the first time, in all threads, in the order in which they are made.
 * Before the NTH of them (0: none) ACTION is done:
 *
 *     errno:N      the call fails with N, and nothing else does
 *     errno:N+     so do all calls that need room on the disk from then on
 *     thread:N     it and all that follow fail with N; only those are counted
 *                  that make threads
 *     signal:N     the command is sent the signal; the call is made
 *     resize:PATH:LEN  the file is made that long; the call is made
 *
 * How many calls there were is written to the file COUNT. Ends as the command
 * does: with its code, or by its signal.
 *
 * The kernel stops each such call for us (seccomp, user notification), however
 * it is made: what goes through libc and what does not.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const int calls[] = {
	SYS_openat,  SYS_mkdirat,   SYS_renameat2, SYS_linkat, SYS_unlinkat, SYS_write,
	SYS_pwrite64, SYS_ftruncate, SYS_fallocate, SYS_fsync,  SYS_mmap,     SYS_flock,
	SYS_copy_file_range, SYS_clone, SYS_clone3,
#ifdef SYS_open
	SYS_open,    SYS_mkdir,     SYS_rename,    SYS_link,   SYS_unlink,   SYS_rmdir,
#endif
#ifdef SYS_renameat
	SYS_renameat,
#endif
};

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static void die(const char *what)
{
	perror(what);
	exit(99);
}

static int install_filter(void)
{
	struct sock_filter filter[COUNT_OF(calls) + 3];
	size_t n = COUNT_OF(calls);

	filter[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (size_t i = 0; i < n; i++)
		filter[i + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i], n - i, 0);
	filter[n + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	filter[n + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
	struct sock_fprog program = { .len = n + 3, .filter = filter };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		die("no new privileges");
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

static void send_fd(int socket, int fd)
{
	char byte = 0, control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { &byte, 1 };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof(int));
	if (sendmsg(socket, &message, 0) != 1)
		die("sendmsg");
}

static int receive_fd(int socket)
{
	char byte, control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { &byte, 1 };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	int fd;

	if (recvmsg(socket, &message, 0) != 1 || !CMSG_FIRSTHDR(&message))
		exit(98);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	return fd;
}

/* Whether it makes, fills, moves, syncs or maps a file: standard output and
 * what is only read are of no interest. */
static int is_counted(const struct seccomp_data *data, int counts_threads)
{
	int is_thread = data->nr == SYS_clone || data->nr == SYS_clone3;

	if (is_thread || counts_threads)
		return is_thread && counts_threads;
	switch (data->nr) {
#ifdef SYS_open
	case SYS_open:
		return data->args[1] & (O_CREAT | O_WRONLY | O_RDWR);
#endif
	case SYS_openat:
		return data->args[2] & (O_CREAT | O_WRONLY | O_RDWR);
	case SYS_write:
		return data->args[0] > 2;
	case SYS_mmap:
		return (data->args[3] & 3) == MAP_SHARED;
	default:
		return 1;
	}
}

/* Whether a full disk lets it fail. */
static int needs_room(const struct seccomp_data *data)
{
	switch (data->nr) {
	case SYS_unlinkat:
	case SYS_flock:
	case SYS_mmap:
	case SYS_ftruncate:
#ifdef SYS_open
	case SYS_unlink:
	case SYS_rmdir:
#endif
		return 0;
	case SYS_openat:
		return data->args[2] & O_CREAT;
	default:
		return 1;
	}
}

static void supervise(int listener, pid_t child, long nth, const char *action, long *count)
{
	struct seccomp_notif request;
	struct seccomp_notif_resp response;
	int number = 0, is_lasting = 0;
	int counts_threads = sscanf(action, "thread:%d", &number) == 1;

	if (sscanf(action, "errno:%d", &number) == 1)
		is_lasting = action[strlen(action) - 1] == '+';
	for (;;) {
		struct pollfd poll_fd = { listener, POLLIN, 0 };
		if (poll(&poll_fd, 1, -1) < 0 && errno != EINTR)
			die("poll");
		if (!(poll_fd.revents & POLLIN)) {
			if (poll_fd.revents)
				return;
			continue;
		}
		memset(&request, 0, sizeof(request));
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &request)) {
			if (errno == ENOENT || errno == EINTR)
				continue;
			return;
		}
		memset(&response, 0, sizeof(response));
		response.id = request.id;
		response.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
		if (is_counted(&request.data, counts_threads)) {
			int is_it = ++*count == nth;
			int is_after = nth && *count > nth &&
				       (counts_threads || (is_lasting && needs_room(&request.data)));
			int signal_number;
			char path[4096];
			long long length;
			if ((is_it || is_after) && number) {
				response.flags = 0;
				response.error = -number;
			} else if (is_it && sscanf(action, "signal:%d", &signal_number) == 1) {
				kill(child, signal_number);
			} else if (is_it && sscanf(action, "resize:%4095[^:]:%lld", path, &length) == 2) {
				if (truncate(path, length))
					die(path);
			}
		}
		/* It may be dead by now. */
		ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response);
	}
}

int main(int argc, char **argv)
{
	int sockets[2], status;
	long count = 0;

	if (argc < 5)
		return 97;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets))
		die("socketpair");
	pid_t child = fork();
	if (child < 0)
		die("fork");
	if (!child) {
		int listener = install_filter();
		if (listener < 0)
			die("seccomp");
		send_fd(sockets[1], listener);
		close(listener);
		execvp(argv[4], argv + 4);
		die(argv[4]);
	}
	close(sockets[1]);
	int listener = receive_fd(sockets[0]);
	supervise(listener, child, atol(argv[2]), argv[3], &count);
	waitpid(child, &status, 0);
	FILE *file = fopen(argv[1], "w");
	if (!file || fprintf(file, "%ld\n", count) < 0 || fclose(file))
		die(argv[1]);
	if (WIFSIGNALED(status)) {
		signal(WTERMSIG(status), SIG_DFL);
		raise(WTERMSIG(status));
	}
	return WEXITSTATUS(status);
}
